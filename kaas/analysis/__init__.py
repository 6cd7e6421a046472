"""From the files of a run to frames, numbers and the paper's figure."""
