"""Cells: clouds cut into cells of one bandwidth, and polynomials in place of pairs."""
