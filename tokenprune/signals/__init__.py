"""What methods read: one table of names, shapes, meanings and providers."""
