"""Learning from a teacher: views that both models see, a cache of the teacher's outputs, the student's losses."""
