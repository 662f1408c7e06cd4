"""The calls that certify a card: of each operation, in the module of its name, what a case is and how one is made."""
