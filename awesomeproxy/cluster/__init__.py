"""Nodes that serve the same sites: who they are, and what they ask each other."""
