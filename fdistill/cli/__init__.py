"""What a person types: the trainer's command line and the other commands. It imports every other room."""
