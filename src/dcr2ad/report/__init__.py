"""Tables, figures and self-contained pages; the only plotting code."""
