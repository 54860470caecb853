"""The demonstration: a site whose every request writes a row, moved under load."""
