"""Word alignment of parallel texts: HMM, Dice, dictionaries."""
