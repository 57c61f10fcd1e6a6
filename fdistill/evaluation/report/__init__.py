"""What a generator is worth: measured rows, a table, pictures and a page that a person reads."""
