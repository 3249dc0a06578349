"""The picture set: scenes drawn from OpenMoji artwork, their captions, and batches of them."""
