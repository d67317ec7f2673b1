"""The benchmark: every method on the same splits, under rules that the code keeps."""
