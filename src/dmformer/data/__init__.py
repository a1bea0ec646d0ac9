"""What files hold, whatever the task: photos, detections, colours, windows."""
