"""Whether the maps look at lungs, at what was learnt, and at what the score rests on."""
