"""Where every site is placed: an interface, and the places that remember it."""
