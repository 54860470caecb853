"""Measurements of AwesomeProxy against other proxies; run ``python -m bench``."""
