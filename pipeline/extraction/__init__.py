"""The parts of an extraction: whose turn each video is, and the files of features that it leaves."""
