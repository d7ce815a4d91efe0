"""One publisher's format a file, found by name.

A reader's module has

    splits(source, root) -> the names of the splits
    files(source) -> the publisher's files besides pictures, by split or role, below `root`
    read(source, split, root) -> an Example or a Rejected for every record, in order

and may have

    NEEDED, the splits that there must be; train and test if it does not say so
    survey(source, root) -> a Finding for each thing that it looks for
    notes(source, root) -> what else the manifest says of how the records were read
"""
