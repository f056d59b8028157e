"""ext4's journal (jbd2).

journal             committing metadata
journal_file        where the journal's blocks are
journal_format      its blocks as bytes
journal_replay      reading it after a crash
recovery            what opening a volume does about it
"""
