"""The object-agnostic knowledge base K (Section 3.3): entries, looking up, importing, checking.

base.py      KnowledgeBase: the entries, names and labels to entries, load and save
search.py    words to entries: BM25 over an inverted index
objects.py   what objects are called, and which domains of the built-in entries fit them
labels.py    a data set's labels to entries, and the labels of the public data sets
agnostic.py  an object's names in a text to ``[object]``, and back for a prompt
sources.py   MMAD's file and a Real-IAD file to entries; titles, merging, the build report
own.py       a user's own files to entries
check.py     what is wrong with a list of entries
builtin.jsonl  the built-in entries, in our own words
"""

from dcr2ad.knowledge.base import KnowledgeBase

__all__ = ["KnowledgeBase"]
