"""The checks behind the exercises, one module a notebook: `from course_utils.checks import forward as check`."""
