"""What runs the jobs: run directories, stages on Ray Data, the cluster, MLflow, progress."""
