"""What is shipped with the library and is no code: photographs, weights, and the catalog of models."""
