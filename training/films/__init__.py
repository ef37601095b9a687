"""The catalogue of films: who stands where, what is learnt from, and random views of it."""
