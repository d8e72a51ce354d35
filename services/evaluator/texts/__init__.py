"""How good generated texts are beside the right ones, by every metric, for both arms."""
