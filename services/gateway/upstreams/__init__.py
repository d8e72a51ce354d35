"""The model servers: which one is asked, how, and what is done when it does not answer."""
