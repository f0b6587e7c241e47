"""What people are told of methods and recipes, for the command line, the demo and the README alike."""
