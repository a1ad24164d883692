"""A shop that takes orders at once and confirms them in the background."""
