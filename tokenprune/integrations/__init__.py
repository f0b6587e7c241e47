"""Other people's programs, with pruned models in them."""
