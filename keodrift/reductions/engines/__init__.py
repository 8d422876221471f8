"""Engines: each a file or folder, none knows what a drift or a potential is for."""
