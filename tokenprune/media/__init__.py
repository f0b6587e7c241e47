"""Pictures and videos as people have them."""
