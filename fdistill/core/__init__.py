"""What everything stands on: descriptions of objects, random streams, files, processes. It imports no other room."""
