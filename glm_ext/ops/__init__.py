"""The operators that GLM is made of. `reference` holds each of them in plain torch."""
