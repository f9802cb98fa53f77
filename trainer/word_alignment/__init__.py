"""Which words of a text translate which words of another: HMM, Dice, dictionaries."""
