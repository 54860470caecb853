"""Movers: what carries a filesystem or a database from one node to another."""
