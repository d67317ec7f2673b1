"""The review sheet: photographs to be answered by keyboard, and the server that keeps the answers."""
