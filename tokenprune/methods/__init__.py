"""One file per published method. A file here is found by itself: registry, command line and tables come from it."""
