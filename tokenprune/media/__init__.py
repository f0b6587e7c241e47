"""Opens pictures and videos: what a file holds, decoded right or refused."""
