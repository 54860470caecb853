"""The control protocol: its server, its commands, and the command line."""
