"""Files of other tools as lists of photographs: which of them, which parts of them, and what a person has said of them already."""
