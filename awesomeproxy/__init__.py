"""A reverse proxy that lets sites move between servers without a failed HTTP request."""

__version__ = "0.1.0"
