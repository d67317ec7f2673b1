"""The parts of the page, one module each: from the record of a run to what the part's template shows."""
