"""One publisher's format a file, found by name.

A reader's module has

    splits(source, root) -> the names of the splits
    files(source) -> the publisher's files besides pictures, by split or role, below `root`
    read(source, split, root) -> an Example or a Rejected for every record, in order

and may have `survey(source, root)`, which yields a Finding for each thing that it looks for.
"""
