"""The exercises' checks on trial: right answers in several writings, and wrong ones that people really give.

One module a notebook. RIGHT has, for each exercise, versions that its check must take; WRONG has versions that it must
refuse, each with words that the message must say. `python -m tests.mutation` prints the table.
"""
