"""The steps of the demonstration, in the order in which the story tells them."""
