"""Static word and token vectors, dictionaries and co-occurrence: the spaces in which tokens are near."""
