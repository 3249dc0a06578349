"""Quality as a number: a judge that looks at pictures, and the measures built on it."""
