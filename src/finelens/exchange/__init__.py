"""What a run says, written in the forms that other tools read."""
