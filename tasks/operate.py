"""What an operator runs from Flower or the command line, with a batch id."""
