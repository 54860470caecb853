"""Moving a site from one backend to another as a transaction."""
