"""The nouns that every layer shares: time, money, quantities, offerings, errors. Standard library only."""
