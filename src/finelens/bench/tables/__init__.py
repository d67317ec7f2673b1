"""What is read from the rows: tables, comparisons, the leaderboard."""
