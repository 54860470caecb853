"""``awesomeproxy demo``: a small site is moved to and fro under load, and every update counted."""
