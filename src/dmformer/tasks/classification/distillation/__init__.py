"""Learning from a teacher: views that both models see, a cache of the teacher's answers, the student's losses."""
